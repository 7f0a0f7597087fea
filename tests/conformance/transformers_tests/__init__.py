"""The sdist's test modules as a package, completed by the few helper modules that the sdist leaves out.

A real package, since spawned ranks import the mixins by name. Our modules come first on its path.
"""

from ..sdist import MODULES

__path__ = [*__path__, str(MODULES)]
