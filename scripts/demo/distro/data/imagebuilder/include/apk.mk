# Packages by apk.
apk = apk --root $(TARGET_DIR) --repositories-file $(TOPDIR)/tmp/repositories --cache-dir $(DL_DIR) --keys-dir keys
list_installed = $(apk) list
local_index := $(TOPDIR)/packages/packages.adb

# What the tree holds itself is pinned to the version that it holds.
pin = $(if $(wildcard packages/$(1)-[0-9]*.apk),$(1)=$(patsubst packages/$(1)-%.apk,%,$(firstword $(wildcard packages/$(1)-[0-9]*.apk))),$(1))
WORLD = $(foreach p,$(BUILD_PACKAGES),$(if $(filter base-files libc kernel,$(p)),$(call pin,$(p)),$(p)))

package_reload:
	@(echo $(local_index); cat repositories) > tmp/repositories
	@$(apk) update >&2 || true
	@if [ ! -f $(local_index) ] || [ "$$(find packages -cnewer $(local_index) | head -n 1)" ]; then \
		echo 'Package list missing or not up-to-date, generating it.' >&2; \
		$(MAKE) -s package_index; \
	fi

package_index:
	@echo >&2
	@echo 'Building package index...' >&2
	@apk mkndx --sign private-key.pem --output $(local_index) packages

package_list:
	@echo 'package_list does not work with apk.' >&2; exit 1

package_install:
	@echo
	@echo 'Installing packages...'
	@$(apk) add $(WORLD)
