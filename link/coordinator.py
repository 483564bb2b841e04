"""The coordinator's end of the link: `LinkServer` listens for hospitals, `LinkGrid` carries messages."""

from link.grid import LinkGrid, node_id
from link.listener import Admit, LinkServer, Observe, Serve, ServerSettings
from link.member import Connected

__all__ = ["Admit", "Connected", "LinkGrid", "LinkServer", "Observe", "Serve", "ServerSettings", "node_id"]
