"""``python -m memr1_plugin.cli``, where the script ``memr1`` is not on the path."""

from memr1_plugin.cli import main

main()
