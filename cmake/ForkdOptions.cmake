# Warnings, sanitizers, coverage and where the programs go.

option(FORKD_TESTS "Build the tests, fuzzers and benchmarks" ON)
option(FORKD_WERROR "Treat warnings as errors" ON)
option(FORKD_COVERAGE "Instrument for gcov" OFF)
option(FORKD_FUZZ "Build the libFuzzer targets (clang)" OFF)
set(FORKD_SANITIZE "" CACHE STRING "Comma separated sanitizers: address,undefined or thread")
set(FORKD_OUTPUT_DIR "${CMAKE_BINARY_DIR}" CACHE PATH "Folder whose bin/ and lib/ get the programs")

set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${FORKD_OUTPUT_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${FORKD_OUTPUT_DIR}/lib)

add_library(forkd_options INTERFACE)
target_compile_definitions(forkd_options INTERFACE _GNU_SOURCE)
target_compile_options(forkd_options INTERFACE
  -Wall -Wextra -Wshadow -Wvla -Wformat=2 -Wstrict-prototypes -Wmissing-prototypes -Wundef
  -Wno-unused-parameter -fno-common -fstack-protector-strong)
if(FORKD_WERROR)
  target_compile_options(forkd_options INTERFACE -Werror)
endif()
target_link_options(forkd_options INTERFACE -Wl,-z,relro,-z,now)

# The sanitizers are a target of their own: what is preloaded into a foreign process or runs as a
# guest's only program (libuffd-attach, the agent) cannot carry their runtime and does not link it.
add_library(forkd_sanitize INTERFACE)
if(FORKD_SANITIZE)
  target_compile_options(forkd_sanitize INTERFACE
    -fsanitize=${FORKD_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all
    # instrumented code defeats the analysis: it warns of paths that cannot be
    $<$<C_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
  target_link_options(forkd_sanitize INTERFACE -fsanitize=${FORKD_SANITIZE})
  if(FORKD_SANITIZE MATCHES "address")
    target_compile_definitions(forkd_sanitize INTERFACE FORKD_ASAN=1)
  elseif(FORKD_SANITIZE MATCHES "thread")
    target_compile_definitions(forkd_sanitize INTERFACE FORKD_TSAN=1)
  endif()
endif()
if(FORKD_FUZZ)
  target_compile_options(forkd_sanitize INTERFACE -fsanitize=fuzzer-no-link)
  target_link_options(forkd_sanitize INTERFACE -fsanitize=fuzzer-no-link)
endif()
if(FORKD_COVERAGE)
  target_compile_options(forkd_sanitize INTERFACE --coverage)
  target_link_options(forkd_sanitize INTERFACE --coverage)
endif()
