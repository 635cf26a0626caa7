"""The benchmark of preparation: its sources."""

import pytest

from benchmarks import harness
from benchmarks import preparation


def test_ten_times_the_images_are_ten_times_the_links(tmp_path):
  (tmp_path / 'a.jpg').write_bytes(b'a')
  paths = harness.jpeg_files(str(tmp_path))
  preparation.make_links(tmp_path / 'links', paths, 12)
  links = sorted((tmp_path / 'links/train/class').iterdir())
  assert len(links) == 12
  assert {link.read_bytes() for link in links} == {b'a'}


def test_a_folder_without_photographs_is_one_line(tmp_path):
  with pytest.raises(SystemExit) as ended:
    harness.jpeg_files(str(tmp_path), 'folder')
  assert str(ended.value) == f'--folder={tmp_path} holds no JPEG'
