# What the image Makefiles of all targets share. Called with the variables that
# the main Makefile exports.
SHELL := /bin/bash
include $(TOPDIR)/.config

work := $(KDIR)/tmp
name := $(IMG_PREFIX)-$(PROFILE_ID)
filesystems := $(if $(CONFIG_TARGET_ROOTFS_SQUASHFS),squashfs) $(if $(CONFIG_TARGET_ROOTFS_EXT4FS),ext4)

# The images need no high compression, they need to be quick.
gzip := gzip -1n

# All times are SOURCE_DATE_EPOCH, from the environment.
$(KDIR)/root.squashfs:
	@mksquashfs $(TARGET_DIR) $@ -noappend -all-root -no-xattrs -no-progress -comp zstd -Xcompression-level 6 -b 256k

$(KDIR)/root.ext4:
	@make_ext4fs -L rootfs -l $$(($(CONFIG_TARGET_ROOTFS_PARTSIZE) << 20)) -t $(SOURCE_DATE_EPOCH) $@ $(TARGET_DIR)

$(work)/%.gz: $(work)/%
	@$(gzip) < $< > $@

# publish,<file>,<type>,<filesystem>,<sign>
publish = FILESYSTEM="$(3)" SIGN="$(4)" bash $(TOPDIR)/scripts/publish-image.sh $(1) $(2)
