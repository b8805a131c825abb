"""`health.py`: exit status 0 when the server in this container answers GET /health with 200.

For container health checks, every few seconds in every container: imports next to nothing. Start it
with `python -ISE`.
"""

import os
import socket
import sys

ANSWER_SECONDS = 2

with socket.create_connection(("127.0.0.1", int(os.environ["PORT"])), ANSWER_SECONDS) as connection:
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    status = connection.makefile("rb").readline(100)
sys.exit(b" 200 " not in status)
