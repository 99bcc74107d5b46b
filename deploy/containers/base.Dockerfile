# The base image for the test of the images, where no registry is reached: Debian's own minimal system, as debootstrap makes it.
FROM scratch
ADD base.tar /
CMD ["bash"]
