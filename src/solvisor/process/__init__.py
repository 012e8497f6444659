"""Processes of one operating system, behind one seam: ``posix`` (``windows`` will come)."""
