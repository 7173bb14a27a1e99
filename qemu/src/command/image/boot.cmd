# Boots Undercroft from U-Boot, as one boots an arm64 Linux. Make a boot script:
#   mkimage -A arm64 -T script -d boot.cmd boot.scr
# U-Boot itself must run at EL2 (its banner or `bdinfo` says so).
setenv bootargs "@BOOTARGS@"
load ${devtype} ${devnum}:${distro_bootpart} ${kernel_addr_r} undercroft.img
load ${devtype} ${devnum}:${distro_bootpart} ${ramdisk_addr_r} bundle.cpio
booti ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdt_addr_r}
