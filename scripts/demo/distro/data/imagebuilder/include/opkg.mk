# Packages by opkg.
opkg = opkg --offline-root $(TARGET_DIR) --conf repositories.conf --lists-dir $(DL_DIR) --cache $(DL_DIR) --keys keys
list_installed = $(opkg) list-installed $(if $(STRIP_ABI),--strip-abi)

package_reload:
	@if [ ! -f packages/Packages ] || [ ! -f packages/Packages.gz ] || \
		[ "$$(find packages -cnewer packages/Packages.gz | head -n 1)" ]; then \
		echo 'Package list missing or not up-to-date, generating it.' >&2; \
		$(MAKE) -s package_index; \
	else \
		$(opkg) update >&2 || true; \
	fi

package_index:
	@echo >&2
	@echo 'Building package index...' >&2
	@mkdir -p $(DL_DIR)
	@cd packages && opkg-make-index . > Packages && \
		gzip -9nc Packages > Packages.gz && \
		$(if $(OLD),:,usign -S -m Packages -s ../key-build -x Packages.sig)
	@$(opkg) update >&2 || true

package_list: package_reload
	@cat $(DL_DIR)/* 2>/dev/null | gawk '/^Package:/ { name = $$2 } /^Version:/ { print name " - " $$2 }'

# No index lists libc and kernel, so they are installed by their files.
package_install:
	@echo
	@echo 'Installing packages...'
	@$(opkg) install $(wildcard packages/libc_*.ipk)
	@$(opkg) install $(wildcard packages/kernel_*.ipk)
	@$(opkg) install $(filter-out libc kernel,$(BUILD_PACKAGES))
