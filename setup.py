"""Packaging, read from settings.ini (ConfigParser alone: nothing else need be installed to build)."""
import os
import sys
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

os.chdir(Path(__file__).resolve().parent)
cfg = ConfigParser(delimiters=['='], interpolation=None)
with open('settings.ini', encoding='utf-8') as f: cfg.read_file(f)
cfg = cfg['DEFAULT']
extras = {k.removesuffix('_requirements'): v.split() for k, v in cfg.items() if k.endswith('_requirements')}
licences = {'apache2': 'Apache-2.0'}
# weights that travel with the wheel: see depth_models.toy_folder
# the page that plays a scene, with Spark and three.js: see splat.viewer; the codec's: see codec_file.codec_folder; the
# refiner's: see refine_parts.refiner_folder
weights = {'vidlit.toy': 'data/models/toy', 'vidlit.codec_weights': 'data/models/codec',
    'vidlit.refiner_weights': 'data/models/refiner'}
data = {k: v for k, v in weights.items() if Path(v, 'config.json').exists()}
if Path('data/viewer/page.html').exists(): data['vidlit.viewer'] = 'data/viewer'
# What a recorded result and a claim are: the report of `vidlit reproduce` shows them beside what it ran
data |= {f'vidlit.record.{k}': f'data/{k}' for k in ('claims', 'results') if Path('data', k).is_dir()}
# An editable install finds all of that in the checkout. Mapped folders would make setuptools install an import hook,
# which type checkers cannot follow and a folder called vidlit in the current directory goes before: one path instead.
if 'editable_wheel' in sys.argv: data = {'': '.'}
stages = ['1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable']

setup(name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
      author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license=licences[cfg['license']],
      license_files=['LICENSE'],
      classifiers=['Development Status :: ' + stages[int(cfg['status'])-1], 'Intended Audience :: ' + cfg['audience'],
                   'Natural Language :: ' + cfg['language'], 'Programming Language :: Python :: 3'],
      packages=find_packages(include=['vidlit', 'vidlit.*']) + [k for k in data if k], package_dir=data,
      package_data={'vidlit': ['py.typed'], **dict.fromkeys(filter(None, data), ['*.json', '*.safetensors', '*.html',
          '*.gz', '*.txt', '*.csv', '*/metrics.json'])},
      include_package_data=False,
      python_requires='>=' + cfg['min_python'], install_requires=cfg['requirements'].split(), extras_require=extras,
      long_description=Path('README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
      entry_points={'console_scripts': cfg['console_scripts'].split(),
      'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
      zip_safe=False)
