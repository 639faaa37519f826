"""An iSCSI initiator in this process: libiscsi through ctypes, under any name, that never connects again by itself.

For tests that must hold a session and look at what becomes of it; quicker in the lab than a process for each command.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Mapping
from typing import Any

from tests.conftest import need

BLOCK = 512
WRITE_PROTECTED = 0x80


class Refused(Exception):
    """The target, or the lack of one, said no."""


def _library() -> Any:
    name = ctypes.util.find_library("iscsi") or "libiscsi.so.7"
    try:
        lib = ctypes.CDLL(name)
    except OSError:
        need(False, "apt-get install libiscsi7")
        raise
    for function in (
        "iscsi_create_context",
        "iscsi_scsi_command_sync",
        "iscsi_write10_sync",
        "scsi_cdb_read10",
        "scsi_cdb_readcapacity10",
        "scsi_cdb_inquiry",
        "scsi_cdb_modesense6",
    ):
        getattr(lib, function).restype = ctypes.c_void_p
    lib.iscsi_get_error.restype = ctypes.c_char_p
    return lib


class Session:
    """A session with an export, as its connection says; ``initiator``, ``user`` and ``password`` may lie."""

    def __init__(
        self,
        data: Mapping[str, Any],
        initiator: str,
        password: str | None,
        *,
        user: str | None = None,
        portal: str = "",
        timeout_s: int = 60,
    ):
        self._lib = _library()
        self._context = ctypes.c_void_p(self._lib.iscsi_create_context(initiator.encode()))
        lib, context = self._lib, self._context
        lib.iscsi_set_targetname(context, data["target_iqn"].encode())
        lib.iscsi_set_session_type(context, 2)
        lib.iscsi_set_noautoreconnect(context, 1)
        lib.iscsi_set_timeout(context, timeout_s)
        if password is not None:
            name = data["auth_username"] if user is None else user
            lib.iscsi_set_initiator_username_pwd(context, name.encode(), password.encode())
        self._lun = int(data["target_lun"])
        if lib.iscsi_full_connect_sync(context, (portal or data["target_portal"]).encode(), self._lun):
            said = self._said()
            lib.iscsi_destroy_context(context)
            raise Refused(said)

    def read(self, at: int, length: int) -> bytes:
        """Read bytes. Raises Refused."""
        task = self._lib.scsi_cdb_read10(at // BLOCK, length, BLOCK, 0, 0, 0, 0, 0)
        return self._command(task, length)

    def write(self, at: int, data: bytes) -> None:
        """Write bytes. Raises Refused."""
        lib = self._lib
        lib.iscsi_write10_sync.argtypes = [
            *(ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_char_p, ctypes.c_uint32),
            *(ctypes.c_int,) * 6,
        ]
        task = lib.iscsi_write10_sync(self._context, self._lun, at // BLOCK, data, len(data), BLOCK, 0, 0, 0, 0, 0)
        self._judge(task)

    def size(self) -> int:
        """Return the size in bytes."""
        said = self._command(self._lib.scsi_cdb_readcapacity10(0, 0), 8)
        return (int.from_bytes(said[:4], "big") + 1) * int.from_bytes(said[4:], "big")

    def page(self, code: int, length: int = 255) -> bytes:
        """Return a page of vital product data."""
        return self._command(self._lib.scsi_cdb_inquiry(1, code, length), length)

    def write_protected(self) -> bool:
        """Return what MODE SENSE says."""
        return bool(self._command(self._lib.scsi_cdb_modesense6(0, 0, 0x3F, 0, 255), 255)[2] & WRITE_PROTECTED)

    def close(self) -> None:
        """Log out, if there is still somebody to tell."""
        self._lib.iscsi_logout_sync(self._context)
        self._lib.iscsi_destroy_context(self._context)

    def _command(self, task: int, length: int) -> bytes:
        buffer = ctypes.create_string_buffer(length)
        self._lib.scsi_task_add_data_in_buffer(ctypes.c_void_p(task), length, buffer)
        self._judge(self._lib.iscsi_scsi_command_sync(self._context, self._lun, ctypes.c_void_p(task), None))
        return buffer.raw

    def _judge(self, task: int | None) -> None:
        if task is None:
            raise Refused(self._said())
        status = ctypes.c_int.from_address(task).value
        self._lib.scsi_free_scsi_task(ctypes.c_void_p(task))
        if status:
            raise Refused(f"status {status}: {self._said()}")

    def _said(self) -> str:
        return (self._lib.iscsi_get_error(self._context) or b"").decode()
