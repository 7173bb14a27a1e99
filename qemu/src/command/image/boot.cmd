# Boots Undercroft from U-Boot, as one boots an arm64 Linux. Make a boot script:
#   mkimage -A arm64 -T script -d boot.cmd boot.scr
# U-Boot itself must run at EL2 (its banner or `bdinfo` says so).
setenv bootargs "@BOOTARGS@"
# Where a board's script keeps no tree of its own, as on QEMU, U-Boot's is it.
if test -z "${fdt_addr_r}"; then setenv fdt_addr_r ${fdtcontroladdr}; fi
if test -z "${distro_bootpart}"; then setenv distro_bootpart 1; fi
load ${devtype} ${devnum}:${distro_bootpart} ${kernel_addr_r} undercroft.img
load ${devtype} ${devnum}:${distro_bootpart} ${ramdisk_addr_r} bundle.cpio
booti ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdt_addr_r}
