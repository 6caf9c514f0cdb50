"""`vecgate service`: the server as the user's own background service, under launchd on macOS and systemd on Linux.

command.py is what the command line calls; launchd.py and systemd.py each know one of the two. Knows no engine.
"""
