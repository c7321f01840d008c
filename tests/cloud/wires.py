"""A network between machines that delays, loses and separates: netem and firewalls, in a thread.

Each machine's namespace has a TUN device. Packets of all devices are read here, dropped by chance
or where two machines share no network, and written to the other device after a while. The kernel's
own netem is not in every kernel; this is the same to whoever sends.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

__all__ = ["Network"]

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000
CLONE_NEWNET = 0x40000000
DEVICE = "net0"


class Network:
    """Machines by name, and the networks that each is in.

    delay_s  each way. loss: share of packets. Addresses are 10.88.0.1 and so on, in order.
    """

    def __init__(
        self, networks: Mapping[str, set[str]], namespaces: Mapping[str, str], *,
        delay_s: float, loss: float,
    ) -> None:  # fmt: skip
        self.addresses = {name: f"10.88.0.{i}" for i, name in enumerate(namespaces, 1)}
        self.carried, self.lost = 0, 0
        self.refused: set[tuple[str, str]] = set()
        """(from, to) of packets between machines that share no network."""
        self._networks, self._namespaces = networks, namespaces
        self._delay_s, self._loss = delay_s, loss
        self._devices: dict[int, str] = {}
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="wires")

    def __enter__(self) -> Network:
        try:
            for name, namespace in self._namespaces.items():
                _ip("netns", "add", namespace)
                self._devices[_device_in(namespace)] = name
                address = f"{self.addresses[name]}/24"
                _ip("-n", namespace, "address", "add", address, "dev", DEVICE)
                for device in ("lo", DEVICE):
                    _ip("-n", namespace, "link", "set", device, "up")
        except BaseException:
            self._leave()
            raise
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ends.set()
        self._thread.join()
        self._leave()

    def _leave(self) -> None:
        for device in self._devices:
            os.close(device)
        for namespace in self._namespaces.values():
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)

    def _carry(self) -> None:
        chance, waiting = random.Random(0), list[tuple[float, int, int, bytes]]()  # noqa: S311
        number = 0
        by_address = {
            address: device
            for name, address in self.addresses.items()
            for device, owner in self._devices.items()
            if owner == name
        }
        while not self._ends.is_set():
            pause = 0.1 if not waiting else max(0.0, waiting[0][0] - time.monotonic())
            for device in select.select(list(self._devices), [], [], min(pause, 0.1))[0]:
                packet = os.read(device, 65536)
                there = by_address.get(_destination(packet))
                if there is None:
                    continue  # multicast of a device that comes up
                if not self._shared(self._devices[device], self._devices[there]):
                    self.refused.add((self._devices[device], self._devices[there]))
                elif chance.random() < self._loss:
                    self.lost += 1
                else:
                    number += 1
                    due = time.monotonic() + self._delay_s
                    heapq.heappush(waiting, (due, number, there, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, there, packet = heapq.heappop(waiting)
                with suppress(OSError):  # its queue is full: lost, as on a wire
                    os.write(there, packet)
                    self.carried += 1

    def _shared(self, one: str, other: str) -> bool:
        return bool(self._networks[one] & self._networks[other])


def _destination(packet: bytes) -> str:
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return ""
    return ".".join(map(str, packet[16:20]))


def _device_in(namespace: str) -> int:
    """A new TUN device in a namespace; what a thread opens there stays open here."""
    made: list[int | BaseException] = []

    def opened() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/run/netns/{namespace}") as there:  # noqa: PTH123
                if libc.setns(there.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            asked = struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI)
            fcntl.ioctl(device, TUNSETIFF, asked)
            made.append(device)
        except BaseException as error:  # noqa: BLE001 - handed to who waits
            made.append(error)

    thread = threading.Thread(target=opened)
    thread.start()
    thread.join()
    (result,) = made
    if isinstance(result, BaseException):
        raise result
    return result


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
