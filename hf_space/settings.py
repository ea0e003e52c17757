"""Numbers of the Space that more than one file knows."""

from pathlib import Path

HERE = Path(__file__).resolve().parent
# Of an upload. Photographs of telephones with 50 million pixels have 10 to 20 megabytes.
MAX_MEGABYTES, MAX_PIXELS = 25, 50_000_000
LIMIT_SECONDS = 20.0
# Visitors who may wait at once; whoever comes later is told so.
MAX_WAITING = 40
# Uploads are deleted when they are this old; looked for this often. In seconds.
KEPT, SWEEP = 900, 300
