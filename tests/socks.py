"""A loopback SOCKS5 proxy that leads every connection to one server, whatever host was asked for."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from socketserver import BaseRequestHandler, ThreadingTCPServer

IPV4, NAME = 1, 3


@dataclass
class SocksProxy:
    """The running proxy: its address, and the hosts and ports that were asked for, in order."""

    address: str
    asked: list[tuple[str, int]] = field(default_factory=list)


@contextlib.contextmanager
def socks_proxy(server: tuple[str, int], user: bytes = b"me", password: bytes = b"secret") -> Iterator[SocksProxy]:
    """Run a proxy on 127.0.0.1 that requires this user and password."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError), socket.create_connection(server, 5) as target:
                self._greet()
                self._connect()
                back = threading.Thread(target=_copy, args=(target, self.request))
                back.start()
                _copy(self.request, target)
                back.join()

        def _greet(self) -> None:
            _, count = self._read(2)
            assert 2 in self._read(count)
            self.request.sendall(b"\5\2")
            _, length = self._read(2)
            given = self._read(length), self._read(self._read(1)[0])
            self.request.sendall(b"\1\0" if given == (user, password) else b"\1\1")

        def _connect(self) -> None:
            _, _, _, kind = self._read(4)
            host = socket.inet_ntoa(self._read(4)) if kind == IPV4 else self._read(self._read(1)[0]).decode()
            state.asked.append((host, struct.unpack("!H", self._read(2))[0]))
            self.request.sendall(b"\5\0\0\1\0\0\0\0\0\0")

        def _read(self, count: int) -> bytes:
            return bytes(self.request.recv(count, socket.MSG_WAITALL))

    class Server(ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as proxy:
        state = SocksProxy(f"127.0.0.1:{proxy.server_address[1]}")
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield state
        proxy.shutdown()
        thread.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
