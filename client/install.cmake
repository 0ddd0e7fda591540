# What `cmake --install` puts beside the library: pkg-config file and CMake package. Both find their
# prefix from where they lie, so `cmake --install --prefix` and a moved tree work.
file(RELATIVE_PATH LL_PC_TO_PREFIX /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
configure_file(${PROJECT_SOURCE_DIR}/client/llclient.pc.in ${PROJECT_BINARY_DIR}/llclient.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/llclient.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

include(CMakePackageConfigHelpers)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/llclientConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(EXPORT llclientTargets FILE llclientConfig.cmake NAMESPACE llclient::
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/llclient)
install(FILES ${PROJECT_BINARY_DIR}/llclientConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/llclient)
