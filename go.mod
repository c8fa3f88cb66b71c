module ftpalg

go 1.26.0
