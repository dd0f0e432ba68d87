"""The images' health check: exit with status 1 unless the server here answers with 200."""

import os
import sys
import urllib.request

address = f"http://127.0.0.1:{os.environ['PORT']}{os.environ['HEALTH']}"
try:
    with urllib.request.urlopen(address, timeout=4) as answer:
        print(answer.status)
except OSError as error:  # urllib's errors are among them
    sys.exit(f"{address}: {error}")
