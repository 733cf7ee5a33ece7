"""Event logs and item files under their first address, for programs that were written for it."""

from ranklet_training.data.events import Events, read_events
from ranklet_training.data.items import read_items
from ranklet_training.data.rows import Columns

__all__ = ["Columns", "Events", "read_events", "read_items"]
