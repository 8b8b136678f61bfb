# The list of mechanisms is generated: a source that defines `void enrol(Registry& ...)` in namespace
# mneme::<room>::<stem> is called. Adding a mechanism edits no list; a missing function is a link error.
set(MNEME_REGISTRY_SCRIPT ${CMAKE_CURRENT_LIST_DIR}/write_registry.cmake)

# mneme_registry(<target> [<extra source>...]): a library that defines enrol_all over the rooms and the extra sources.
function(mneme_registry target)
  get_property(sources GLOBAL PROPERTY MNEME_SOURCES)
  list(APPEND sources ${ARGN})
  set(generated ${CMAKE_BINARY_DIR}/generated/${target}.cpp)
  set(listing ${CMAKE_BINARY_DIR}/generated/${target}.sources)
  list(JOIN sources "\n" text)
  file(CONFIGURE OUTPUT ${listing} CONTENT "${text}")
  add_custom_command(OUTPUT ${generated}
    COMMAND ${CMAKE_COMMAND} -DLISTING=${listing} -DOUTPUT=${generated} -P ${MNEME_REGISTRY_SCRIPT}
    DEPENDS ${sources} ${listing} ${MNEME_REGISTRY_SCRIPT} COMMENT "Listing mechanisms" VERBATIM)
  add_library(${target} STATIC ${generated} ${ARGN})
  get_property(rooms GLOBAL PROPERTY MNEME_ROOM_TARGETS)
  target_link_libraries(${target} PUBLIC ${rooms})
endfunction()
