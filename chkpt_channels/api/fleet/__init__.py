"""Many conversions: rows, what does them (this process, several, a cluster), and the ledger that remembers them."""

from __future__ import annotations

from chkpt_channels.api.fleet.clusters import executor_on
from chkpt_channels.api.fleet.driver import Outcome, run
from chkpt_channels.api.fleet.row import rows, shard
from chkpt_channels.api.manifest import Job

__all__ = ["Job", "Outcome", "executor_on", "rows", "run", "shard"]
