"""The status socket: HTTP/1.1 and JSON under ``/v1`` over a Unix socket, for the command line, scripts and ``curl``."""
