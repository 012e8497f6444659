"""Places where processes run, each an implementation of ``interfaces.Backend``."""
