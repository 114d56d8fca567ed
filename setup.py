"Everything about the package stands in settings.ini; this file only hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
cfg = ConfigParser(delimiters=['=']); cfg.read(here/'settings.ini', encoding='utf-8')
c = cfg['DEFAULT']
readme = here/'README.md'

setup(
    name=c['lib_name'], version=c['version'], description=c['description'], keywords=c['keywords'].split(),
    author=c['author'], author_email=c['author_email'], url=c['git_url'], license='Apache-2.0',
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '', long_description_content_type='text/markdown',
    packages=find_packages(include=['neurossl', 'neurossl.*']), package_data={'neurossl': ['weights/*']}, license_files=['LICENSE'], python_requires=f">={c['min_python']}",
    install_requires=c['requirements'].split(), extras_require={'dev': c['dev_requirements'].split()}, zip_safe=False,
)
