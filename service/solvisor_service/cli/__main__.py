"""``python -m solvisor_service.cli``: the same as ``solvisor``."""

import sys

from . import main

sys.exit(main())
