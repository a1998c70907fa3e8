# Libraries, all from Debian's own packages (tools/packages.txt).
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)

foreach(dep IN ITEMS libbpf:libbpf libevent:libevent_core libmicrohttpd:libmicrohttpd msgpack:msgpack
                     lz4:liblz4 zstd:libzstd xxhash:libxxhash jansson:jansson inih:inih libseccomp:libseccomp)
  string(REPLACE ":" ";" pair ${dep})
  list(GET pair 0 name)
  list(GET pair 1 module)
  pkg_check_modules(${name} REQUIRED IMPORTED_TARGET ${module})
endforeach()
pkg_check_modules(libevent_extra REQUIRED IMPORTED_TARGET libevent_extra)
pkg_check_modules(ncursesw REQUIRED IMPORTED_TARGET ncursesw)
pkg_check_modules(libevent_pthreads REQUIRED IMPORTED_TARGET libevent_pthreads)
if(FORKD_TESTS)
  pkg_check_modules(cmocka REQUIRED IMPORTED_TARGET cmocka)
endif()
