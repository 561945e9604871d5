"""The station's recipe of bootable images: Debian's packages and a kit in, one disk image and one root tarball out."""
