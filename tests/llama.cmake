# `make llama` has CMake read this where llama.cpp's build begins: what does no arithmetic is compiled with few optimizations,
# and many small files that include the same headers at once. ggml, in which a model's time is spent, is compiled as everywhere.
function(compile_quickly)
  foreach(library llama llama-common mtmd)
    if(TARGET ${library} AND NOT MSVC)
      target_compile_options(${library} PRIVATE -O1)
    endif()
  endforeach()
  compile_at_once(mtmd "models/")
  # Not jinja/ and json.cpp: what these specialize must stand before others use it.
  compile_at_once(llama-common "^[^j/][^/]*$|^json-[^/]*$|parsers/")
endfunction()

function(compile_at_once library these)
  if(TARGET ${library})
    get_target_property(sources ${library} SOURCES)
    get_target_property(folder ${library} SOURCE_DIR)
    list(FILTER sources EXCLUDE REGEX "${these}")
    list(TRANSFORM sources PREPEND "${folder}/" REGEX "^[^/]")
    set_source_files_properties(${sources} TARGET_DIRECTORY ${library} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
    set_target_properties(${library} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 16)
  endif()
endfunction()
cmake_language(DEFER CALL compile_quickly)
