"""Python runs this when it starts, if this directory is on its path: see `rule_mistakes`."""

from tests.support.rule_mistakes import make

make()
