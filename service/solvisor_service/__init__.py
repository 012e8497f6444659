"""How Solvisor is run: composition root and command line. The library ``solvisor`` never imports this."""
