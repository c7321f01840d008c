"""Every error secure_quant raises on purpose, in one tree.

    SecureQuantError
    ├── ModelError                 the model, graph or artifact is at fault
    │   ├── MalformedModel         a file that cannot be a model: truncated, tampered with, ...
    │   │   ├── HashMismatch       the content is not what its name says
    │   │   ├── PlanMismatch       a plan that this release does not derive from the graph
    │   │   └── UnsupportedVersion a format version this release does not read
    │   ├── InvalidGraph           nodes that contradict each other
    │   │   └── OverflowRisk       an accumulator could leave its proven range
    │   ├── OpNotSupported         an engine has no exact gate for an op
    │   ├── UnsupportedModule      a torch module or function that cannot be lowered
    │   ├── CaptureMismatch        a captured graph that computes something else than its module
    │   ├── AccuracyLoss           integers further off the float model than the caller allows
    │   ├── CalibrationError       calibration data missing or unusable
    │   ├── NotFinite              NaN or infinity in a parameter, a statistic, a loss or a result
    │   └── MissingParameters      weights asked of a public graph
    ├── InputError                 the caller's data is at fault
    │   ├── ShapeMismatch
    │   ├── DtypeMismatch
    │   ├── MalformedDataset       a data-set file that is not of its format, or not there
    │   └── ValueOutOfRange
    ├── ConfigError                options, files or certificates that cannot be used
    │   ├── CertificateExpired     outside its period of validity
    │   ├── CertificateMismatch    key, certificate, authority and role that do not belong together
    │   ├── CertificateMissing     no such file, or nothing in it that can be read
    │   └── InsecureRefused        an unsafe choice made without saying so
    ├── ProtocolError              a peer's message breaks the protocol
    │   ├── ImplausibleAnswer      well formed, and not what the model can have answered
    │   ├── MalformedMessage
    │   ├── MessageTooLarge
    │   └── MaterialReused         one-time material was asked for twice
    └── ServiceError               the service cannot answer now, or not to this caller
        ├── ModelNotFound
        ├── SessionNotFound        no such session is held here, or no longer
        ├── Unauthenticated
        ├── PermissionDenied
        ├── BudgetExceeded         a client's query budget is spent
        ├── PeerUnavailable        the other party, the dealer or a server is away
        ├── MaterialExhausted      the dealer's stock ran out before the deadline
        ├── PairingSpent           a pairing with one host made all it may; pair anew
        ├── DeadlineExceeded
        ├── Overloaded             too many calls at once; try again later or elsewhere
        └── InternalError          a worker died; the request may be sent again

A message says what was got and what was expected, and never contains secret data.
"""

from __future__ import annotations

from typing import Self

__all__ = [
    "AccuracyLoss",
    "BudgetExceeded",
    "CalibrationError",
    "CaptureMismatch",
    "CertificateExpired",
    "CertificateMismatch",
    "CertificateMissing",
    "ConfigError",
    "DeadlineExceeded",
    "DtypeMismatch",
    "HashMismatch",
    "ImplausibleAnswer",
    "InputError",
    "InsecureRefused",
    "InternalError",
    "InvalidGraph",
    "MalformedDataset",
    "MalformedMessage",
    "MalformedModel",
    "MaterialExhausted",
    "MaterialReused",
    "MessageTooLarge",
    "MissingParameters",
    "ModelError",
    "ModelNotFound",
    "NotFinite",
    "OpNotSupported",
    "OverflowRisk",
    "Overloaded",
    "PairingSpent",
    "PeerUnavailable",
    "PermissionDenied",
    "PlanMismatch",
    "ProtocolError",
    "SecureQuantError",
    "ServiceError",
    "SessionNotFound",
    "ShapeMismatch",
    "Unauthenticated",
    "UnsupportedModule",
    "UnsupportedVersion",
    "ValueOutOfRange",
]


def _printable(text: str) -> str:
    """What a peer chose must not move a terminal's cursor or forge a line of a log."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


class SecureQuantError(Exception):
    """Base of the tree: ``what`` went wrong, what was ``got`` and ``expected``, a ``hint``.

    The text shows characters that cannot be printed by their escapes.
    """

    def __init__(
        self,
        what: str,
        *,
        got: object = None,
        expected: object = None,
        hint: str | None = None,
    ) -> None:
        self.what, self.got, self.expected, self.hint = what, got, expected, hint
        text = what
        if got is not None:
            text += f": got {got}"
        if expected is not None:
            text += f", expected {expected}" if got is not None else f": expected {expected}"
        if hint is not None:
            text += f" ({hint})"
        super().__init__(_printable(text))

    def at(self, place: object) -> Self:
        """The same, said of a place: a file, say."""
        return type(self)(
            f"{place}: {self.what}", got=self.got, expected=self.expected, hint=self.hint
        )


class ModelError(SecureQuantError):
    """The model, graph or artifact is at fault."""


class MalformedModel(ModelError):
    """A file cannot be a model: truncated, oversized, tampered with, or of another kind."""


class HashMismatch(MalformedModel):
    """The content does not hash to its name."""


class PlanMismatch(MalformedModel):
    """A peer's plan is not the one that this release derives from the public graph."""


class UnsupportedVersion(MalformedModel):
    """A format version that this release does not read."""


class InvalidGraph(ModelError):
    """Nodes whose shapes, types or names contradict each other."""


class OverflowRisk(InvalidGraph):
    """An accumulator could leave the range that was proven or declared for it."""


class OpNotSupported(ModelError):
    """An engine has no exact gate for an op."""


class UnsupportedModule(ModelError):
    """A torch module or function that cannot be lowered to the integer ops."""


class CaptureMismatch(ModelError):
    """The graph captured of a torch module computes something else than the module."""


class AccuracyLoss(ModelError):
    """Integers further off the float model than the caller allows."""


class CalibrationError(ModelError):
    """Calibration data that is missing or cannot be used."""


class NotFinite(ModelError):
    """NaN or infinity in a model's parameters, its training or what it computes."""


class MissingParameters(ModelError):
    """Weights were asked of a public graph, which has none."""


class InputError(SecureQuantError):
    """The caller's data is at fault."""


class ShapeMismatch(InputError):
    """An array of the wrong shape."""


class DtypeMismatch(InputError):
    """An array of the wrong dtype."""


class MalformedDataset(InputError):
    """A data-set file that is missing, truncated, or not of its format."""


class ValueOutOfRange(InputError):
    """A value outside what the operation is defined for (NaN, infinity, beyond int8, ...)."""


class ConfigError(SecureQuantError):
    """Options, files or certificates that cannot be used."""


class CertificateExpired(ConfigError):
    """A certificate used before or after its period of validity."""


class CertificateMismatch(ConfigError):
    """Key, certificate, authority and role that do not belong together."""


class CertificateMissing(ConfigError):
    """A certificate or key that is not there or cannot be read."""


class InsecureRefused(ConfigError):
    """An unsafe choice that was not made in so many words."""


class ProtocolError(SecureQuantError):
    """A peer's message breaks the protocol."""


class ImplausibleAnswer(ProtocolError):
    """An answer of the right form that the model cannot give: a server deviated, or its state is
    damaged. Sending the same input again tells such a server more than one answer."""


class MalformedMessage(ProtocolError):
    """A message of the wrong length, with a value out of range, or out of turn."""


class MessageTooLarge(ProtocolError):
    """A message above the limit; refused before memory is taken for it."""


class MaterialReused(ProtocolError):
    """One-time material was asked for a second time."""


class ServiceError(SecureQuantError):
    """The service cannot answer now, or not to this caller."""


class ModelNotFound(ServiceError):
    """No model of that hash is served here."""


class SessionNotFound(ServiceError):
    """No session of that id is held here for this caller, or no longer; open another."""


class Unauthenticated(ServiceError):
    """The caller did not prove who it is."""


class PermissionDenied(ServiceError):
    """The caller's role may not do this."""


class BudgetExceeded(ServiceError):
    """The client's query budget is spent."""


class PeerUnavailable(ServiceError):
    """The other party, the dealer or a server cannot be reached."""


class MaterialExhausted(ServiceError):
    """The dealer's stock ran out before the deadline."""


class PairingSpent(ServiceError):
    """A pairing has made all the correlated OTs that its secrets allow, or left the process that
    made it; pair anew."""


class DeadlineExceeded(ServiceError):
    """The answer did not come in time."""


class Overloaded(ServiceError):
    """Too many calls at once; the call was not started and may be sent again, or elsewhere."""


class InternalError(ServiceError):
    """A worker died while it held the request; the request may be sent again."""
