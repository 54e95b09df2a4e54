# SPDX-License-Identifier: Apache-2.0
"""Host endpoints: where bytes come from and go to.

Each owns its descriptor and says what it asks of requests.
"""

from iodma.endpoints.base import Endpoint
from iodma.endpoints.datagram import Datagram
from iodma.endpoints.file import File
from iodma.endpoints.memory import Buffer, Null
from iodma.endpoints.nbd import Nbd
from iodma.endpoints.stream import Socket
from iodma.endpoints.tap import Tap

__all__ = ["Buffer", "Datagram", "Endpoint", "File", "Nbd", "Null", "Socket", "Tap"]
