# A thin front of the CMake presets; everything real is in CMakeLists.txt and CMakePresets.json.
JOBS ?= $(shell nproc)

.PHONY: all deps test-deps demo test bench fault killpoints fuzz fmt lint clean

all: deps
	@[ -f build/release/build.ninja ] || cmake --preset release
	@cmake --build --preset release -j $(JOBS)

deps:
	@tools/install-deps

# A VM boots, goes on standby, and comes back as eight clones.
demo: all
	@build/bin/forkctl demo

# Only some tests need these: without them they are skipped.
test-deps: deps
	@tools/install-deps tools/packages-test.txt || echo "some tests will be skipped" >&2

test: all test-deps
	@cd build/release && ctest --output-on-failure -j 2 $(CTEST_ARGS)

bench: all
	@/usr/bin/python3 tests/bench/run.py

# The pager, forkd and much else is killed below busy guests, hundreds of times: an hour. FAULT_ARGS="--only pager-loss"
fault: all
	@/usr/bin/python3 tests/fault/run.py $(FAULT_ARGS)

killpoints: all
	@/usr/bin/python3 tests/fault/killpoints.py $(FAULT_ARGS)
	@/usr/bin/python3 tests/fault/killpoints.py --error $(FAULT_ARGS)

# Every parser under libFuzzer, SECONDS each.
fuzz: deps
	@cmake --preset fuzz -DFORKD_FUZZ_SECONDS=$(or $(SECONDS),60) >/dev/null
	@cmake --build --preset fuzz -j $(JOBS) --target fuzz

fmt: deps
	@git ls-files '*.c' '*.h' | xargs clang-format -i

lint: deps
	@[ -f build/clang/build.ninja ] || cmake --preset clang
	@cmake --build --preset clang -j $(JOBS)
	@git ls-files '*.c' '*.h' | xargs clang-format --dry-run -Werror
	@git ls-files '*.c' | grep -v -e '^tests/' -e '\.bpf\.c$$' | xargs clang-tidy -quiet -p build/clang

clean:
	@rm -rf build
