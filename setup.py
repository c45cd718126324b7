"""Package metadata: ranges live here, exact tested versions in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# Read, not imported: building a wheel must not need jax.
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "jukebox_jax/__init__.py").read_text(), re.MULTILINE).group(1)

setup(
    name="jukebox-jax",
    version=VERSION,
    description="Jukebox in JAX: music as raw audio, from a VQ-VAE, a top prior and two upsamplers",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["jukebox_jax", "jukebox_jax.*"]),
    package_data={
        "jukebox_jax": [
            *("corpus/demo_data/*", "toy/**/*", "toy/**/.*"),
            *("export/*.html", "export/*.css", "export/*.js", "export/*.json", "parallel/*.toml"),
        ]
    },
    entry_points={"console_scripts": ["jukebox-jax = jukebox_jax.cli.main:main"]},
    install_requires=[
        "absl-py",
        "anyascii>=0.3",
        # array_record has no current wheel for Windows; TFDS itself asks for it on Linux only.
        "array_record>=0.8; sys_platform != 'win32'",
        "etils[epath]",
        "flax>=0.12",
        "fsspec>=2024.6",
        "jax>=0.10,<0.12",
        "jaxtyping>=0.3",
        "matplotlib>=3.9",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12",
        "pillow>=10",
        "soundfile>=0.13",
        "soxr>=1.0",
        "tensorboardX>=2.6",
        # The smaller CPU build is published for Linux on x86 only. TensorFlow reads data here, nothing more.
        "tensorflow-cpu>=2.20; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "tensorflow>=2.20; sys_platform != 'linux' or platform_machine != 'x86_64'",
        "tensorflow-datasets>=4.9.9",
        "tqdm",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
        "beam": ["apache-beam>=2.70"],
        "gcs": ["gcsfs>=2024.6"],
        # GPL. How the released models spell lyrics; later versions spell some characters otherwise.
        "openai": ["Unidecode>=1.1.1,<=1.3.4"],
        # GPL. Reads the tags inside music files; without it they are passed over, and prepare says so.
        "tags": ["mutagen>=1.47"],
        # GPL (mutagen). Tags in exported songs, and loudness.
        "export": ["mutagen>=1.47", "pyloudnorm>=0.1.1"],
        "c2pa": ["c2pa-python>=0.30"],
        "torch": ["torch>=2.4"],
        "wandb": ["wandb>=0.25"],
        "notebook": ["ipykernel", "jupyterlab", "nbclient"],
        "av": ["av>=14"],
        "corpus": ["music21>=9"],
        "dev": [
            *("beartype>=0.20", "hypothesis>=6.100", "pytest>=8", "pytest-xdist>=3.6", "ruff>=0.12"),
            *("Unidecode>=1.1.1,<=1.3.4", "apache-beam>=2.70", "av>=14", "mutagen>=1.47"),
            *("pyloudnorm>=0.1.1", "c2pa-python>=0.30", "cryptography>=43"),
            *("ipykernel", "nbclient", "playwright>=1.50"),
        ],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Sound/Audio :: Sound Synthesis",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
