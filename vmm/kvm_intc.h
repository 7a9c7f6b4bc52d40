/* The interrupt lines, message-signalled vectors and doorbells of a KVM VM. For vm.c alone. */
#ifndef FERRY_KVM_INTC_H
#define FERRY_KVM_INTC_H

#include "vmm/device.h"
#include "vmm/intc.h"

struct kvm_intc;

/* Sets up the arch's line routes lazily: with the first MSI. vm_fd is borrowed. -ENOMEM. */
int kvm_intc_create(struct kvm_intc **out, int vm_fd, unsigned max_routes);
void kvm_intc_destroy(struct kvm_intc *kintc);
struct intc *kvm_intc_lines(struct kvm_intc *kintc);
struct doorbells *kvm_intc_doorbells(struct kvm_intc *kintc);

#endif
