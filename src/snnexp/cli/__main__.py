import sys

from snnexp.cli import main

sys.exit(main())
