"""One lane at run time: the link, its sessions, and one-time material on its way."""
