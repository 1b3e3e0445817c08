"""HTTP as uvicorn reads it, with a bound on what a stranger may send before anybody asks who it is."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD = 65_536
"""Bytes that the first line and the headers of a request may have, beyond the first piece that arrives of them."""


class Protocol(HttpToolsProtocol):
    """uvicorn's, which keeps headers without end."""

    _head: int | None = None
    """Bytes of the head that is being read; None where none is."""

    def data_received(self, data: bytes) -> None:
        """Close a connection whose head does not end."""
        begun = self._head is not None
        super().data_received(data)
        if begun and self._head is not None:
            self._head += len(data)
            if self._head > HEAD and not self.transport.is_closing():
                self.send_400_response(f"The head of the request is longer than {HEAD} bytes.")

    def on_message_begin(self) -> None:
        """A request begins."""
        self._head = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is whole; the body has a limit of its own."""
        self._head = None
        super().on_headers_complete()
