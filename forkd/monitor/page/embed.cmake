# SPDX-License-Identifier: MIT
# Makes the page of its parts: one HTML file with style and script inside, as a C array, and the policy (CSP) that lets a browser run
# exactly these two: by their hashes, so that the page is the same bytes for everybody and nothing that gets into it later runs.
#   cmake -DSOURCE=<this folder> -DOUT=<x.c> -DSCRIPTS=<a.js,b.js…> -P embed.cmake

# 64 hex digits as base64: three bytes become four letters.
function(base64_of hex ret)
  set(letters ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/)
  set(text "")
  foreach(i RANGE 0 63 6)
    string(SUBSTRING "${hex}00" ${i} 6 three)
    foreach(shift IN ITEMS 18 12 6 0)
      math(EXPR at "(0x${three} >> ${shift}) & 63")
      string(SUBSTRING ${letters} ${at} 1 letter)
      string(APPEND text ${letter})
    endforeach()
  endforeach()
  string(SUBSTRING ${text} 0 43 text)
  set(${ret} "${text}=" PARENT_SCOPE)
endfunction()

file(READ ${SOURCE}/page.html page)
file(READ ${SOURCE}/page.css style)
string(REPLACE "," ";" SCRIPTS "${SCRIPTS}")
set(script "\"use strict\";\n(() => {\n")
foreach(name IN LISTS SCRIPTS)
  file(READ ${SOURCE}/${name} part)
  string(APPEND script "${part}")
endforeach()
string(APPEND script "})();\n")
foreach(part IN ITEMS style script)
  if("${${part}}" MATCHES "</(style|script)|<!--")
    message(FATAL_ERROR "the page's ${part} would end, or hide, its own element")
  endif()
  string(SHA256 hash "${${part}}")
  base64_of(${hash} ${part}_hash)
endforeach()
string(REPLACE "@STYLE@" "${style}" page "${page}")
string(REPLACE "@SCRIPT@" "${script}" page "${page}")
file(WRITE ${OUT}.html "${page}")
file(READ ${OUT}.html hex HEX)
string(REGEX REPLACE "(................................)" "\\1\n" hex "${hex}")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
set(policy "default-src 'none'; script-src 'sha256-${script_hash}'; style-src 'sha256-${style_hash}'; connect-src 'self'; img-src data:; ")
string(APPEND policy "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'")
file(WRITE ${OUT} "/* Made by embed.cmake. */
#include \"forkd/monitor/page.h\"

const char page_policy[] = \"${policy}\";
const unsigned char page_html[] = {
${bytes}
};
const size_t page_html_size = sizeof(page_html);
")
