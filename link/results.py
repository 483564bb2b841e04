"""Results of calls, of which a long one that many hospitals ask for lies in memory once."""

from __future__ import annotations

import threading

from flwr.app import RecordDict

from link.frames import LARGE_BYTES, Packer, Parcel, payload_record
from link.generated import link_pb2 as pb


class Results:
    """Makes the results of calls; a long payload that many ask for is in memory once. For any thread."""

    def __init__(self, kept: int = 4) -> None:
        """Remembers the newest `kept` long payloads."""
        self._most = kept
        self._kept: list[tuple[bytes, RecordDict, Packer]] = []
        self._lock = threading.Lock()

    def result(self, id_: str, call: str, payload: bytes) -> Parcel:
        """The answer to a call."""
        if len(payload) < LARGE_BYTES:
            return Packer().result(id_, call, payload)
        with self._lock:
            found = next((entry for entry in self._kept if entry[0] == payload), None)
            if found is None:
                found = (payload, payload_record(payload), Packer())
                self._kept = [*self._kept, found][-self._most :]
            _, record, packer = found
            return packer.content(pb.Header(kind=pb.Header.RESULT, id=id_, reply_to=call), record)
