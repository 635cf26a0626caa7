"""UTF-8 for paths, files and output, whatever the locale is."""

import locale
import os
import sys

from alexnet_jax.runtime import signals


def use_utf8() -> None:
  """Restarts this program in Python's UTF-8 mode if the locale is another.

  In a locale of ASCII or Latin-1, Python and libraries in C++ spell a path in
  two ways, and class names cannot be written. In any locale, characters that
  the terminal cannot show are printed as escapes, such as \\xe9, and do not
  raise an error. Call this before the program does anything.
  """
  encoding = locale.getpreferredencoding(False)
  if not sys.flags.utf8_mode and encoding.lower() != 'utf-8':
    os.environ['PYTHONUTF8'] = '1'  # For the processes that this one starts.
    signals.restart(['-Xutf8', *sys.orig_argv[1:]])
  if sys.stdout is not None:  # It was not closed before the start.
    sys.stdout.reconfigure(errors='backslashreplace')
