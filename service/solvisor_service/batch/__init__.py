"""The batch of the shell: what ``solvisor run`` does between its arguments and its exit status.

``life`` sends the inputs, watches the batch and obeys interrupts; ``link`` keeps asking while the daemon is away or
starts one; ``progress`` shows how far it is; ``summary`` holds what became of each input, ``report`` shows it.
"""
