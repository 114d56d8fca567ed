__version__ = "0.1.0"

import os
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1") # huge pages halve the page faults of training; must be set before torch is imported
