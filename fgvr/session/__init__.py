"""One configuration at work: a Session makes each part when it is first asked for, and keeps it.

The parts themselves take plain arguments: nothing below this package sees a configuration. `resources.py` has images and models,
`with_knowledge.py` the base, `session.py` the recognizer.
"""

from fgvr.session.session import Session

__all__ = ["Session"]
