/** Named errors: those of `secure_quant.errors`, here one class with the name as its `kind`. */

import { Code, ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";

const DOMAIN = "secure-quant";

export interface About {
  got?: unknown;
  expected?: unknown;
  hint?: string | undefined;
}

/** `kind`: the error's name in upper snake case, `BUDGET_EXCEEDED`. The message holds no secret. */
export class SecureQuantError extends Error {
  override readonly name = "SecureQuantError";

  constructor(
    readonly kind: string,
    readonly what: string,
    readonly about: About = {},
    cause?: unknown,
  ) {
    const { got, expected, hint } = about;
    let text = what;
    if (got !== undefined) text += `: got ${String(got)}`;
    if (expected !== undefined) text += `${got === undefined ? ":" : ","} expected ${String(expected)}`;
    if (hint !== undefined) text += ` (${hint})`;
    super(text, cause === undefined ? undefined : { cause });
  }
}

/** Of a status without details: the code alone decides, as in secure_quant/wire/status.py. */
const BY_CODE: Partial<Record<Code, string>> = {
  [Code.Aborted]: "PEER_UNAVAILABLE",
  [Code.Canceled]: "PEER_UNAVAILABLE",
  [Code.DeadlineExceeded]: "DEADLINE_EXCEEDED",
  [Code.FailedPrecondition]: "CONFIG_ERROR",
  [Code.InvalidArgument]: "MALFORMED_MESSAGE",
  [Code.NotFound]: "MODEL_NOT_FOUND",
  [Code.OutOfRange]: "VALUE_OUT_OF_RANGE",
  [Code.PermissionDenied]: "PERMISSION_DENIED",
  [Code.ResourceExhausted]: "OVERLOADED",
  [Code.Unauthenticated]: "UNAUTHENTICATED",
  [Code.Unavailable]: "PEER_UNAVAILABLE",
  [Code.Unimplemented]: "CONFIG_ERROR",
};

const UNREACHED =
  "is it there, does this machine know its certificate's authority, and is this page's origin among its --http-origins?";

/** The named error behind a failed call. `where`: the party, for the message. */
export function named(error: unknown, where: string): SecureQuantError {
  if (error instanceof SecureQuantError) return error;
  const failed = ConnectError.from(error);
  for (const info of failed.findDetails(ErrorInfoSchema)) {
    if (info.domain === DOMAIN && /^[A-Z_]+$/.test(info.reason)) {
      const { what, got, expected, hint } = info.metadata;
      const about: About = { hint };
      if (got !== undefined) about.got = got;
      if (expected !== undefined) about.expected = expected;
      return new SecureQuantError(info.reason, `${where}: ${what ?? info.reason}`, about, failed);
    }
  }
  // A browser says no more of a connection that failed than that it did.
  if (failed.code === Code.Unknown && failed.cause instanceof TypeError) {
    return new SecureQuantError("PEER_UNAVAILABLE", `${where}: ${failed.rawMessage}`, { hint: UNREACHED }, failed);
  }
  const kind = BY_CODE[failed.code] ?? "INTERNAL_ERROR";
  return new SecureQuantError(kind, `${where}: ${failed.rawMessage}`, {}, failed);
}
