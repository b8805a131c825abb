"""What the naming server and the storage node share to serve HTTP: the fast lane, access, start and stop."""
