"""A command that restarts itself with huge pages."""

import os
import sys

from alexnet_jax.runtime import huge_pages


def test_a_program_restarts_once_with_huge_pages(monkeypatch):
  monkeypatch.setattr(sys, 'platform', 'linux')
  monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
  calls = []
  monkeypatch.setattr(os, 'execv', lambda *args: calls.append(args))
  huge_pages.reexec_with_huge_pages()
  huge_pages.reexec_with_huge_pages()
  assert calls == [(sys.executable, [sys.executable, *sys.orig_argv[1:]])]
  assert os.environ['GLIBC_TUNABLES'] == 'glibc.malloc.hugetlb=1'


def test_a_value_that_the_user_has_set_is_kept(monkeypatch):
  monkeypatch.setenv('GLIBC_TUNABLES', '')
  monkeypatch.setattr(os, 'execv', None)
  huge_pages.reexec_with_huge_pages()
