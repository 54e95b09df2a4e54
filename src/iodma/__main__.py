# SPDX-License-Identifier: Apache-2.0
import sys

from iodma.cli import main

sys.exit(main())
