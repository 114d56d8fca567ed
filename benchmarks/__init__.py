"Speed beside other libraries, measured fairly"
