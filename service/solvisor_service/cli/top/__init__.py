"""The live view of ``solvisor top``: ``model`` is what it knows and what keys do, ``view`` makes lines of that,
``terminal`` owns the terminal, ``loop`` asks the daemon and puts them together.
"""
